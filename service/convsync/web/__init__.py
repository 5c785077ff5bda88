"""The HTTP face: routes, access, problem documents, streams and the console."""
