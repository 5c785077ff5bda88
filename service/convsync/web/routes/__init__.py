"""The routes, one module per subject; each registers with `convsync.web.routing.route`."""
