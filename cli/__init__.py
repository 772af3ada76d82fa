"""The command `hone`: serving, the demo, keys, migrations and a look at the machine."""
