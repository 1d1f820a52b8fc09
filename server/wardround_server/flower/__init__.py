"""The coordinator's end of Flower: SuperLink, app, mail. The only package of the coordinator that imports Flower."""
