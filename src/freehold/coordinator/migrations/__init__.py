"""The coordinator's tables, version by version. An upgrade in the middle of a study keeps the study."""

__all__: list[str] = []
