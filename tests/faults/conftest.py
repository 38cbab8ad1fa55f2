"""The same service as in tests/worker."""

from tests.worker.conftest import any_service, service

__all__ = ["any_service", "service"]
