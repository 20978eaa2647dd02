# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: our exports against other NBD servers and replicators, side by side in one run."""
