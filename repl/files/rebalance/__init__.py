# SPDX-License-Identifier: Apache-2.0
"""Rebalance: new layouts for directories, and files moved to where their names belong (spec 6.7, decision 0065).

Inputs: a client's volfile with cluster/distribute; outputs: a volume where everything is in its place, and a progress
file.  migration.py moves one file, crawl.py walks the volume, progress.py is the file, main.py the process.
"""
