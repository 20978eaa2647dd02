# SPDX-License-Identifier: Apache-2.0
"""The class that a volfile's cluster/distribute becomes."""

from __future__ import annotations

from repl.files.translators.distribute.listing import Listings


class Distribute(Listings):
    TYPE = "cluster/distribute"
    ALIASES = ("cluster/dht",)

    def state(self) -> dict[str, object]:
        up = {f"subvolume_status[{i}]": int(self.up[i]) for i in self.everyone}
        return {**up, "volume_commit": self.volume_commit, "directories": len(self.directories),
                "files": len(self.files), "names": len(self.known_names)}  # fmt: skip
