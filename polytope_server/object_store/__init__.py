"""The BasicHTTPServer: staged objects over HTTP, for one token and for signed links.

Only a thin layer over `polytope_server.staging.local`; its client is `polytope_server.staging.polytope`.
"""
