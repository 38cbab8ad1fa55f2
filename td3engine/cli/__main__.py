"""`python -m td3engine.cli`, as which a worker starts the engine."""

from td3engine.cli.main import main

main()
