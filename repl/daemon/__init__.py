# SPDX-License-Identifier: Apache-2.0
"""``repld``: one process per resource, the asyncio shell around the node and the engine."""
