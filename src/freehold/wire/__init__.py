"""What coordinator and nodes say to each other, and how: the only place where the two meet.

Import the module that is needed: some must stay small (`client`, `messages`, `routes`, `local`), others need numpy or aiohttp.
"""

__all__: tuple[str, ...] = ()
