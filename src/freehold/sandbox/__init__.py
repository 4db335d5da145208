"""The kernel's walls around training code: namespaces, system calls, Landlock, limits; and attempts to get through them.

Standard library only: it runs in the guard, and inside of the jail before anything that is not trusted.
"""

__all__: tuple[str, ...] = ()
