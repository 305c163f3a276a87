"""Schedule rules of kernels that pack bits."""
