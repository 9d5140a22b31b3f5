"""Who vouches for people: OpenID Connect providers and GitHub."""
