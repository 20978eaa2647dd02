#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plants known bugs one by one into a copy of the tree: the tests must find each (``make planted``).

usage: .venv/bin/python tools/planted.py [--only NAME] [--seeds N]
"""
