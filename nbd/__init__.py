# SPDX-License-Identifier: Apache-2.0
"""NBD negotiation: from an accepted connection to a descriptor that the engine can serve."""
