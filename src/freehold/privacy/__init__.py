"""What a plan promises about privacy, in numbers. `privacy.accounting` alone loads dp-accounting, and only when asked."""

from __future__ import annotations
