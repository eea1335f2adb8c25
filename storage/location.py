"""Names of stores: which paths and URLs may say where a store lies."""

import re
from pathlib import Path
from urllib.parse import urlsplit

SUFFIX = ".zarr"
SCHEMES = ("file", "s3", "gs", "az", "abfs", "abfss")


def stem_of(url: str | Path) -> str:
    """Return the name that a path or URL gives a store, without `.zarr`.

    Args:
        url: a local path, `file://...`, or another URL, ending in `<stem>.zarr`.

    Raises:
        ValueError: the name does not end so, the scheme is none of ours, or the URL carries
            credentials; the message does not repeat those.
    """
    text = str(url).rstrip("/")
    parts = urlsplit(text) if "://" in text else None
    if parts and (parts.username or parts.password or parts.query or parts.fragment):
        raise ValueError(
            "credentials or parameters in a store's URL would be copied into config.yaml; give "
            "them through the environment (for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    if parts and parts.scheme not in SCHEMES:
        raise ValueError(f"expected a URL of {', '.join(SCHEMES)}; found {parts.scheme}://")
    stem = text.rsplit("/", 1)[-1].removesuffix(SUFFIX)
    if not text.endswith(SUFFIX) or not re.fullmatch(r"[\w.-]*\w", stem):
        raise ValueError(
            "expected the name of a store, letters, digits, '_', '-' and '.', then .zarr, such as "
            f"s3://bucket/digits.zarr; found {text!r:.200}"
        )
    return stem
