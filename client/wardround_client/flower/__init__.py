"""The road to the coordinator. The only package of the hospital that imports Flower."""
