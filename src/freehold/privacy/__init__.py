"""What a plan promises about privacy, in numbers. `freehold.privacy.accounting` alone loads dp-accounting, and only when asked."""

from __future__ import annotations
