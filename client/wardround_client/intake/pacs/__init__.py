"""An archive of studies (PACS) as a source: found by a worklist, fetched a series at a time, read, and gone.

- trouble.py: what can go wrong with a PACS, in words, and what is then done
- archive.py: what a protocol does (`sources/dicomweb.py` and `sources/dimse.py` are the two): find and fetch
- line.py: an archive in a process of its own, which may hang, crash or run out of memory
- plan.py: what was found, sorted, on disk
- source.py: the two as a `Source`: what is asked, what is believed of the answers, and retries
- secrets.py, hours.py, multipart.py: what their names say

Nothing that a PACS answers widens what was asked. The labels CSV is the worklist: an object is taken when its study and
its own UID are those that were asked for, and a line of the worklist names it.
"""
