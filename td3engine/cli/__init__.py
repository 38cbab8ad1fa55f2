"""The command `td3`, one file a command."""
