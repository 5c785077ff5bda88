"""The Graph API side: one HTTP client, its error catalogue, and the reading of answers into facts.

Nothing here knows the database. One call of `GraphClient.get` is one HTTP attempt: whoever calls it
has been granted a slot of the Page's call budget first, and decides what to do with a `GraphError`.
"""
