"""What calls of the API raise when it cannot do as asked, or cannot be reached: always tried again, never a defect."""

from __future__ import annotations

import aiohttp

from stead.kube.errors import ApiError

API_TROUBLE = (ApiError, OSError, TimeoutError, aiohttp.ClientError)
