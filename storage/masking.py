"""Credentials in URLs, masked before a text is shown."""

import re

# A secret may hold a slash, as those of S3 do, so all before a URL's last @ is hidden.
_USER = re.compile(r"(?<=://)[^\s'\"]*@")
_QUERY = re.compile(r"(://[^\s'\"?]*\?)[^\s'\"]+")


def masked(text: object) -> str:
    """Return the text with user, password and parameters of every URL in it replaced.

    >>> masked("cannot open s3://key:se/cret@bucket/a.parquet?token=x: refused")
    'cannot open s3://***@bucket/a.parquet?*** refused'
    """
    return _QUERY.sub(r"\1***", _USER.sub("***@", str(text)))
