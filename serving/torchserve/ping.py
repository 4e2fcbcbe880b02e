"""Is TorchServe ready? `python -m serving.torchserve.ping http://127.0.0.1:8085`, where it was started: exit code 0 or 1.

A probe of Kubernetes: TorchServe's `/ping` asks for a token, which it wrote beside itself.
"""

import json
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

KEYS = Path("key_file.json")
TIMEOUT_S = 4


def ready(address: str, keys: Path = KEYS) -> bool:
    """Whether a worker has loaded the model.

    Args:
        address: of the inference API.
        keys: file that TorchServe wrote in its working directory.
    """
    try:
        token = json.loads(keys.read_text())["inference"]["key"]
        with urlopen(Request(f"{address}/ping", headers={"Authorization": f"Bearer {token}"}), timeout=TIMEOUT_S):
            return True
    except (OSError, ValueError, URLError):
        return False


if __name__ == "__main__":
    sys.exit(not ready(sys.argv[1]))
