"""Formats of ranking data: our rows as others want them, and others' files as our lines. Pure functions, no database.

Out: `rows` reads a row of a dataset; `preferences`, `hh`, `oasst` and `tables` say it in other words;
`exports` lists these with what each cannot hold; `files` writes them as files. In: `sources` finds the records of a
file; `preferences`, `hh`, `oasst`, `chats` and `tools` read them as `items`; `imports` lists these with how
each is told from its first record.
"""
