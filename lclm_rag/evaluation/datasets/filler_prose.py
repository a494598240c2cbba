"""Sentences of made-up English, from a seed: what needles are hidden in where no essays are at hand.

They read like prose and mean nothing; hardly two are the same. None has a digit or a hyphen. The adjectives
and nouns also name the keys of needles, joined by a hyphen, so no key stands in the prose by chance.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

__all__ = ["ADJECTIVES", "NOUNS", "filler_sentences"]

ADJECTIVES = tuple(
    """
    ample ancient arid autumn awkward bald barren bashful bitter bland bleak blunt bold brave breezy
    brief bright brisk brittle broad bronze bumpy busy calm candid careful cautious cheerful chilly
    civil clever cloudy clumsy coarse cold common compact cordial cosy crisp crooked crude curious curly
    daring dark dazzling deep delicate dense dim distant docile drowsy dry dull dusty eager early
    earnest easy elderly elegant empty endless even exact faded faint fair faithful famous fancy feeble
    fertile fierce fine firm flat fluid foggy foreign fragile frank free fresh frosty frugal gallant
    gaudy generous gentle giant glad gleaming gloomy golden graceful grand grave greasy great grim
    gritty gruff handsome handy happy hardy harsh hasty hazy hearty heavy hollow honest humble hungry
    icy idle innocent jagged jolly joyful keen kind large late lavish lazy lean level light likely
    little lively lofty lonely loose loud loyal lucid lucky lush massive meagre mellow merry mighty mild
    modest moist mossy murky mute naked narrow neat nimble noble noisy obscure odd open orderly ornate
    pale patient peaceful plain playful pleasant plump polite prompt proud prudent quaint quick quiet
    rapid rare ready restless rigid ripe robust rocky rough round royal rugged rural rusty sandy scarce
    secret serene severe shabby shallow sharp shiny short shy silent silver simple sincere sleek slender
    slight slow small smooth sober soft solemn solid sour spare sparse spicy splendid square stable
    stale stately steady steep stern stiff stormy stout straight strange strict strong stubborn sturdy
    subtle sudden sullen sunny supple swift tame tart tedious tender thick thin thirsty thorough tidy
    timid tiny tired tough tranquil tricky trim true vague vast vivid warm wary weary weekly wide wild
    windy wise witty wooden worthy young zealous
    """.split()
)

NOUNS = tuple(
    """
    acorn alley almanac anchor anvil apple apron arch arrow attic autumn axle bakery balcony ballad
    banner barge barley barn barrel basin basket beacon beam beehive bell bench berry bishop blanket
    blossom boat bonnet boulder bridge broom brush bucket button cabin cable cactus canal candle canoe
    canvas canyon carpet cart castle cattle cavern cellar chain chalk chapel chariot cherry chest
    chimney chorus cliff cloak clock clover coach coast coin column comet compass copper coral corridor
    cottage cotton cradle crane crater crayon creek cricket crown crystal cupboard curtain cushion
    dagger dairy daisy dam dawn desert desk dial diary ditch dock dome donkey door dove drawer drum dune
    eagle easel echo elbow elm ember engine envelope fable falcon farm feather fence fern ferry fiddle
    field finch flag flask fleet flint flour flute forest forge fort fountain fox frame frost furnace
    gallery garden garlic gate geyser glacier glove goat goose gorge grain granite grape gravel grove
    guitar gull hammer hammock harbour harp harvest hatchet hawk hazel hedge helmet herb heron hill
    hinge honey horizon horn inn ink island ivy jacket jar jewel journal judge jungle kennel kettle key
    kiln kite kitchen ladder lagoon lake lamp lane lantern lark laurel lawn leaf ledge lemon letter
    lever library lily linen lizard loom lotus lumber mantle map maple marble market marsh mast meadow
    medal melody mill mine mirror moat monk moss moth motor mountain mural museum mushroom nail needle
    nest nettle notebook oak oar oasis oat ocean olive onion opal orchard organ otter oven owl ox oyster
    paddle palace panel parcel parrot path pearl pebble pepper piano pier pigeon pillar pilot pine pipe
    plank plaster plough plum pocket poem pond poppy porch potter prairie prism puppet quarry quill
    quilt rabbit radish raft rail rainbow raven reed reef ribbon rice ridge ring river road robin roof
    rope rose rudder rug saddle sail salmon satchel scarf school scroll seal seed shadow shed shell
    shelf ship shore shovel shrine silk skate sketch sleeve slipper smith snail soap sparrow spice
    spindle spoon spring spruce squirrel stable stair statue steam stone storm stove stream street sugar
    summit swan sword table tailor tapestry teapot temple thicket thimble thistle thread throne thunder
    tide tiger timber toad torch tower trail train treasure trumpet tulip tunnel turnip turtle umbrella
    valley vase vault veil village vine violin wagon wall walnut walrus water weaver well whale wharf
    wheat wheel whistle willow window winter wolf wool wren yard zebra
    """.split()
)

_PEOPLE = tuple(
    """
    archivist astronomer baker beekeeper carpenter clerk cobbler cook dancer doctor engineer farmer
    ferryman fiddler fisherman forester gardener grocer guard historian innkeeper inventor lawyer
    librarian mason mayor merchant miller miner musician nurse painter pharmacist philosopher postman
    printer professor sailor schoolmaster sculptor shepherd shopkeeper singer soldier student surveyor
    teacher traveller watchmaker widow
    """.split()
)
_PLACES = tuple(
    """
    across the bay|along the canal|at the edge of town|behind the mill|below the old fort|beside the
    chapel|by the northern road|down by the docks|in a back room|in the capital|in the hills|in the
    reading room|in the upper gallery|near the border|near the station|on the far bank|on the market
    square|out on the moor|over the bridge |under the arches|up in the attic|within the walls
    """.replace("\n", " ").split("|")
)
_TIMES = tuple(
    """
    after the harvest|all through the winter|as evening fell|at first light|before the rains came|during
    the fair |every few weeks|for a whole season|in those years|late one night|long before the war|on
    most mornings|on the last day of spring|once the snow had gone|one summer|some years later|that same
    afternoon|towards noon|when the bells had stopped|without any warning
    """.replace("\n", " ").split("|")
)
_DID = tuple(
    """
    admired bought borrowed carried cleaned collected copied counted covered described discovered drew
    examined exchanged forgot found guarded hid imagined inherited kept lost measured mended moved
    noticed offered opened ordered owned painted polished praised preserved printed promised recognised
    recorded refused remembered removed repaired replaced returned saved sketched sold sorted studied
    traded used valued washed watched weighed wrapped
    """.split()
)
_IDEAS = tuple(
    """
    ambition anger beauty belief boredom caution change chance comfort courage craft curiosity custom
    debt discipline doubt duty envy fame fashion fear fortune freedom friendship gratitude grief habit
    honour hope humour hunger ignorance judgement justice knowledge language law luck memory mercy
    nature order patience peace poverty power pride progress reason regret rumour silence skill sleep
    taste trade trust truth vanity wealth weather wisdom wonder work youth
    """.split()
)
_ADVERBS = tuple(
    """
    almost always barely calmly carefully clearly doubtless eagerly easily faintly finally gladly
    gradually hardly honestly largely merely mostly nearly never often openly partly perhaps plainly
    politely quickly quietly rarely really seldom silently slowly simply steadily suddenly surely
    usually wholly
    """.split()
)

# N: noun, A: adjective, P: person, D: what was done, I: idea, V: adverb, L: where, T: when.
_PATTERNS = tuple(
    line.split()
    for line in """
    T , the P D the A N and the N beside it .
    The P L V D the A N that the P had left behind .
    It was V a question of I , and the A N made no difference to it .
    Nobody L had seen such a A N , least of all the P .
    If I is like a N , then I is V the N that holds it up .
    The A N stood L , and T the P D it .
    What the P called I the P called I , and both of them D the N .
    There is more I in a A N than in many a A N .
    The P wrote to the P about the N , the A N and the price of the N .
    I grows where the N is A ; I wants a A N .
    T the P went L with a A N , a N and very little I .
    The N was A , the N was A , and the P V D neither of them .
    People who trust in I V ask what a A N is for .
    To the P it seemed that I had V changed the A N L .
    One P D a A N , while the other V D the N .
    The story of the A N is V a story about I .
    L there was a A N , and beyond it a N that the P had D .
    She D the N T , and he D the A N without a word of I .
    Every P needs I , a A N and the I of friends .
    The A P and the A P V agreed about I , but they D the same N .
    T it was said that the P had D every N L .
    Between I and I there lies a A N , as the P V put it .
    The N smelled of N and N , and the A N was V gone .
    Much has been said of I ; the N , A as it is , says more .
    """.strip().splitlines()
)
_WORDS = {
    "N": NOUNS,
    "A": ADJECTIVES,
    "P": _PEOPLE,
    "D": _DID,
    "I": _IDEAS,
    "V": _ADVERBS,
    "L": _PLACES,
    "T": _TIMES,
}


def filler_sentences(seed: int) -> Iterator[str]:
    """Sentences without end; the same seed gives the same ones."""
    rng = random.Random(seed)
    while True:
        yield _sentence(rng)


def _sentence(rng: random.Random) -> str:
    text = ""
    for sign in rng.choice(_PATTERNS):
        # "I" is never the pronoun here.
        word = " ".join(rng.choice(_WORDS[sign]).split()) if sign in _WORDS else sign
        if word in (",", ";", "."):
            text += word
            continue
        if text.endswith(" a") and word[0] in "aeiou":
            text += "n"
        text += f" {word}"
    return text[1].upper() + text[2:]
