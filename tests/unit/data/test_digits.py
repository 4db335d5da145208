from freehold.data import digits


def test_digits_are_1797_images_of_one_client() -> None:
    population = digits()
    assert population.features.shape == (1797, 64)
    assert population.clients == ("all",) and population.classes == tuple("0123456789")
    assert (population.features.min(), population.features.max()) == (0, 1)
