"""Pages on loopback, for a browser of this machine's own user.

Both sides serve pages with these parts: `guard` (who is let in), `serving` (the port), `views` (templates and answers),
`charts` (drawings), `escaped` (text from outside). What a page says and does is each side's own.
"""
