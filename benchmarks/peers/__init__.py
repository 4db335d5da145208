"""The same trivial work on other federations' real servers and clients, in environments of their own."""
