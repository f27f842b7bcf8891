"""The console at `/`: pages for people, rendered on the server, of the same data as the API's.

One module a group of pages, and one a concept that they share: sessions, who may see a page, how
pages are protected and rendered, charts. Pages work without JavaScript and without the internet.
The console knows forms, pages and cookies; what it shows and changes belongs to the ledger, to
adapters and to reported runs, which do not know it.
"""
