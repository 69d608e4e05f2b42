"""What every Python program here shares: where to call, and the one line of JSON it prints about what its user got."""

import base64
import hashlib
import json
import os

BASE_URL = os.environ["BASE_URL"]
API_KEY = os.environ["API_KEY"]
CALL = os.environ["SIM_CALL"]
MODEL = os.environ.get("MODEL", "gemini-3-pro-image")
SIZE = os.environ.get("SIZE")  # such as "4K"; nothing is asked for otherwise
SENDS = int(os.environ.get("SENDS", "0"))  # how often the client may send one call; 0 leaves it to its defaults
PROMPT = "A cat in a teacup"
HEADERS = {"x-sim-call": CALL}


def decoded(data_url):
    """The type and the bytes of a `data:` URL."""
    head, data = data_url.split(",", 1)
    return head.removeprefix("data:").split(";")[0], base64.b64decode(data)


class Report:
    def __init__(self):
        self.said = dict(
            ok=False, error_type=None, error=None, status=None, images=[], chosen_sha256=None, finish_reason=None, text=None
        )

    def image(self, data, mime):
        self.said["images"].append(dict(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), mime=mime))

    def chosen(self, data):
        """The image a user of the documentation's snippet ends up with."""
        self.said["chosen_sha256"] = hashlib.sha256(data).hexdigest()

    def text(self, text):
        self.said["text"] = (self.said["text"] or "") + text

    def finish_reason(self, reason):
        if reason is not None:
            self.said["finish_reason"] = str(getattr(reason, "name", reason))

    def __enter__(self):
        return self

    def __exit__(self, _type, error, _traceback):
        """An error is a result: it is what the client told its user."""
        if error is None:
            self.said["ok"] = True
        else:
            status = getattr(error, "status_code", None) or getattr(error, "code", None)
            self.said.update(
                error_type=type(error).__name__, error=str(error)[:500], status=status if isinstance(status, int) else None
            )
        print(json.dumps(self.said), flush=True)
        return isinstance(error, Exception)
