"""How logs are read: the parts behind `td3engine.interactions`, which is what others import."""
