"""The public API, which `import td3engine` loads lazily.

It is thin: the packages below do the work, and the command line calls the same functions.
"""
