"""HTTP: the Litestar app, its routes, what goes over the wire, and every status code."""
