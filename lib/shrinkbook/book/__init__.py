"""The offline HTML book: its source tree is assembled from notebooks, results and a few written pages, then built."""
