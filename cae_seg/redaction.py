"""Remove credentials from text that is printed, logged or stored."""

import re

HIDDEN = "***"
_PUNCTUATION = ".,:;)]}"  # of the sentence around a URL
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^\s'\"<>]+)", re.IGNORECASE)


def redact(text: str) -> str:
    """Return `text` with the credentials of every URL in it replaced by `***`.

    These are the user information in front of the host and the whole query string: signed
    addresses carry their signature in a parameter whose name depends on the service.
    """
    return _URL.sub(_redact_match, text)


def _redact_match(found: re.Match[str]) -> str:
    rest = found[2].rstrip(_PUNCTUATION)
    return f"{found[1]}://{_hide(found[1], rest)}{found[2][len(rest) :]}"


def redact_uri(uri: str) -> str:
    """Return one whole URI without its credentials, whatever characters they contain."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}://{_hide(scheme, rest)}" if separator else uri


def _hide(scheme: str, rest: str) -> str:
    """Hide the credentials in what follows `scheme://`."""
    before_path = rest.split("/", 1)[0]
    _, colon, port = before_path.partition(":")
    # A password may contain @ and /, although it should be escaped: then no port precedes the path.
    unescaped = "@" in rest and (
        not scheme.lower().startswith("http") or (colon and not port.isdigit())
    )
    if "@" in before_path or unescaped:
        _, _, rest = rest.rpartition("@") if unescaped else _split_user(rest, before_path)
        rest = f"{HIDDEN}@{rest}"
    address, question, _ = rest.partition("?")
    return address + (f"?{HIDDEN}" if question else "")


def _split_user(rest: str, before_path: str) -> tuple[str, str, str]:
    user, at, host = before_path.rpartition("@")
    return user, at, host + rest[len(before_path) :]
