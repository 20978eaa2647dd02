# SPDX-License-Identifier: Apache-2.0
"""Rebalance: new layouts for directories, and files moved to where their names belong (spec 6.7, decisions 0065, 0132).

Inputs: a client's volfile with cluster/distribute; outputs: a volume where everything is in its place, and a progress
file.  at_once.py moves a small file, migration.py a large one, tidying.py what lies in a directory; crawl.py walks the
volume, progress.py is the file, main.py the process.
"""
