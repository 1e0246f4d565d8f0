"""Out-of-distribution (OOD) detection: is a query unlike the images that the model was trained on?

Such a query is called foreign; images like the training images are called known.
"""
