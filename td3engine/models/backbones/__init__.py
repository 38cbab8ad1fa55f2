"""The backbones. Each module here is one, of the module's name (`td3engine.models.registry`)."""
