"""The public API, which `import td3engine` offers lazily.

Everything here is thin: the rooms below do the work, and the command line is built on the same
functions.
"""
