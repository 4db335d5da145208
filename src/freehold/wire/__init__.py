"""What coordinator and nodes say to each other, and how: the only place where the two meet."""

__all__: list[str] = []
