"""The servers that the service can stand on, started privately: on loopback, in a directory of their own.

Used by the tests, by ``make services`` and by the benchmarks; nothing of it is installed.
"""
