"""undisturbed.py FILE [SECONDS [RANK_0 [COUNT]]]: a survey to which nothing happens, unless from outside."""

import sys

from landscape import Bowl, run

given = dict(zip(("seconds", "rank_0", "count"), sys.argv[2:], strict=False))
run(Bowl(float(given.get("seconds", 0))), sys.argv[1], int(given.get("count", 12)), rank_0=given.get("rank_0", "auto"))
