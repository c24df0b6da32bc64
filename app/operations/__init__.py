"""What an operator needs: is everything well (`doctor`, `/health`, `/ready`, `/metrics`), and is everything kept
(`backup`, `restore`). It puts the domains together as `app.main` does; none of them knows it.
"""
