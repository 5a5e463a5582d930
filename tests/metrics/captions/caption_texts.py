"""Captions of our own for the tests, and a process's share of them for the test with two."""

HYPOTHESES = [
    "A man rides a bicycle down the street.",
    "Two dogs run on the beach",
    "a woman is holding a red umbrella",
    "The children's toys aren't on the floor",
    "",
    "a a a a a a a a a a",
    "Boy jumping.",
    "a black-and-white cat sleeps near the dog's bed while the dog plays",
]
REFERENCES = [
    ["A man on a bike rides down a city street.", "The cyclist is riding along the road", "A man cycling."],
    [
        "Two dogs are running along the beach",
        "Dogs run and play in the sand",
        "Two brown dogs chase each other",
        "dogs",
    ],
    ["A woman holds a red umbrella in the rain", "A lady with an umbrella", "the woman is holding her umbrella"],
    ["Toys are not on the floor", "There aren't any toys of the children's on the floor", "A clean floor"],
    ["A bird sits on a wire", "Birds on wires"],
    ["A tall tree", "a green tree near a house and a road"],
    ["A boy jumps into the pool", "The boys jumped in", "boy jumping"],
    ["A black and white cat is sleeping", "a cat lies near a dog's bed", "cat sleeping near a bed with a playing dog"],
]


def share(rank: int) -> tuple[list[str], list[list[str]], list[int]]:
    """Captions, references and ids of process `rank` of two: 3 and 6, one image seen by both."""
    rows = range(3) if rank == 0 else range(2, 8)
    return [HYPOTHESES[i] for i in rows], [REFERENCES[i] for i in rows], list(rows)
