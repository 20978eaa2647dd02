# SPDX-License-Identifier: Apache-2.0
"""Ready commands for the ``handlers`` section."""
