"""Models of API keys."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from app.http.schemas.common import Name, RequestModel, Time
from app.store.models import Scope

EXAMPLE_KEY = "td3_01m84jx25zewj3pagw0dhmba0j_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"


class KeyRequest(RequestModel):
    """Body of `POST /keys`."""

    name: Name = Field(description="What it is for.")
    scope: Scope = Field(
        default="write",
        description="`read`: look and download. `write`: also upload, start, cancel, delete. "
        "`admin`: also make and revoke keys of the tenant.",
    )
    expires_at: Time | None = Field(
        default=None, description="The key is refused from this time on; null: never."
    )


class Key(BaseModel):
    """An API key, without the key itself."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(examples=["key_01m84jx25zewj3pagw0dhmba0j"])
    name: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="To within ten minutes.")


class NewKey(Key):
    """A new API key. The key itself is shown only here."""

    key: str = Field(description="Send it as `Authorization: Bearer KEY`.", examples=[EXAMPLE_KEY])
