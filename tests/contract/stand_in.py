"""Runs the stand-in for a Qdrant server until Ctrl-C, for the indexing benchmark:

    python tests/contract/stand_in.py 6333

Workers need PRECEDENT_STORE__PREFER_GRPC=false with it. It keeps points in memory, and has no
payload indexes; what is measured with it says how workers share a job, and nothing of Qdrant.
"""

import argparse
import threading
from contextlib import suppress

from loopback import Loopback


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("port", type=int, nargs="?", default=0, help="0 takes a free one")
    with Loopback().rest(parser.parse_args().port) as port, suppress(KeyboardInterrupt):
        print(f"http://127.0.0.1:{port}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
