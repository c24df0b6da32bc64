"""Every word of the pocket world, in English and Chinese: tables only, the same shape for both languages.

`world` puts them together, `utility` judges by them. A word changed here changes the world and the pocket model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a prompt of the pocket world asks for."""

    STORY = "story"
    HOW_TO = "how_to"
    ANIMAL = "animal"
    CAPITAL = "capital"
    COLOUR = "colour"
    OPPOSITE = "opposite"
    SUM = "sum"


@dataclass(frozen=True)
class AnimalFacts:
    """What is true of an animal, as it stands in a sentence."""

    home: str
    food: str
    voice: str


@dataclass(frozen=True)
class Phrasebook:
    """One language of the world. Braces in a template are slots, filled by `world`."""

    language: str
    joiner: str
    """Between the sentences of an answer."""
    prompts: Mapping[Kind, tuple[str, ...]]
    """Ways to ask, by kind."""
    animals: Mapping[str, AnimalFacts]
    traits: tuple[str, ...]
    things: tuple[str, ...]
    recipes: Mapping[str, tuple[str, ...]]
    """What one can do, and its steps in order."""
    capitals: Mapping[str, str]
    colours: Mapping[str, str]
    opposites: Mapping[str, str]
    story: tuple[tuple[str, ...], ...]
    """The parts of a good story, in order; each with its wordings."""
    morals: tuple[str, ...]
    portrait: tuple[tuple[str, ...], ...]
    """The parts of a good description of an animal, in order."""
    how_to_openings: tuple[str, ...]
    replies: Mapping[Kind, tuple[str, ...]]
    """Good answers to the kinds that are answered in one sentence."""
    courtesies_before: tuple[str, ...]
    courtesies_after: tuple[str, ...]
    rudeness: tuple[str, ...]
    """Rude answers; each of them is made of sentences that occur nowhere else."""
    length_ranges: Mapping[Kind, tuple[int, int]]
    """Reasonable lengths of an answer: words in English, characters in Chinese."""


ENGLISH = Phrasebook(
    language="en",
    joiner=" ",
    prompts={
        Kind.STORY: (
            "Write a story about a {trait} {animal} and a {thing}.",
            "Tell me a story about a {trait} {animal} who finds a {thing}.",
            "Please write a short tale with a {trait} {animal} and a {thing} in it.",
            "Can you tell a bedtime story about a {trait} {animal} and a {thing}?",
            "I would like a story in which a {trait} {animal} finds a {thing}.",
        ),
        Kind.HOW_TO: (
            "How do I {task}?",
            "Please explain how to {task}.",
            "What are the steps to {task}?",
            "Show me how to {task}, step by step.",
            "I want to {task}. What should I do?",
            "Can you help me {task}?",
        ),
        Kind.ANIMAL: (
            "Tell me about the {animal}.",
            "Where does a {animal} live and what does it eat?",
            "Describe a {animal} for a child.",
            "What do you know about the {animal}?",
            "Please write a few sentences about the {animal}.",
        ),
        Kind.CAPITAL: (
            "What is the capital of {country}?",
            "Which city is the capital of {country}?",
            "Please tell me the capital of {country}.",
            "Do you know the capital of {country}?",
        ),
        Kind.COLOUR: (
            "What colour is {item}?",
            "Which colour does {item} have?",
            "Please tell me the colour of {item}.",
            "Do you know what colour {item} is?",
        ),
        Kind.OPPOSITE: (
            "What is the opposite of {word}?",
            "Which word means the opposite of {word}?",
            "Please give me the opposite of {word}.",
            "Do you know the opposite of {word}?",
        ),
        Kind.SUM: (
            "What is {a} plus {b}?",
            "How much is {a} plus {b}?",
            "Please add {a} and {b}.",
            "Can you work out {a} + {b}?",
        ),
    },
    animals={
        "wolf": AnimalFacts("in the mountains", "fresh meat", "howls"),
        "hen": AnimalFacts("in a farmyard", "yellow corn", "clucks"),
        "bee": AnimalFacts("in a hive", "sweet nectar", "buzzes"),
        "goat": AnimalFacts("on a rocky hill", "dry leaves", "bleats"),
        "crow": AnimalFacts("in the treetops", "worms and seeds", "caws"),
        "seal": AnimalFacts("by the cold sea", "small fish", "barks"),
        "lion": AnimalFacts("on the grassland", "zebras", "roars"),
        "pig": AnimalFacts("in a muddy pen", "roots and turnips", "grunts"),
        "parrot": AnimalFacts("in the rainforest", "ripe fruit", "squawks"),
        "donkey": AnimalFacts("in a stable", "straw", "brays"),
        "snake": AnimalFacts("in the desert", "eggs and lizards", "hisses"),
        "cow": AnimalFacts("in a meadow", "clover", "moos"),
    },
    traits=("gentle", "stubborn", "cheerful", "lonely", "careless", "patient", "timid", "greedy", "polite", "tired"),
    things=(
        "silver bell",
        "wooden flute",
        "glass bottle",
        "green umbrella",
        "torn letter",
        "round mirror",
        "wool scarf",
        "rusty lamp",
        "clay pot",
        "little drum",
    ),
    recipes={
        "cook rice": (
            "rinse the rice twice",
            "put it in a pot with two cups of water",
            "simmer it with the lid on for fifteen minutes",
            "let it rest before you serve it",
        ),
        "write a letter": (
            "take a clean sheet and a pen",
            "greet the person by name",
            "say what you want to say in short sentences",
            "sign it and put it in an envelope",
        ),
        "wash a shirt": (
            "fill a basin with warm water",
            "add a spoon of soap",
            "rub the shirt until the stains are gone",
            "hang it on a line to dry",
        ),
        "learn a song": (
            "listen to the song three times",
            "read the words aloud",
            "sing one line after the other",
            "sing it for a friend the next day",
        ),
        "fix a flat tyre": (
            "take the wheel off the bicycle",
            "find the hole in the tube",
            "glue a patch over the hole",
            "pump up the tyre and put the wheel back",
        ),
        "calm a baby": (
            "hold the baby close to you",
            "speak in a soft voice",
            "check whether it is hungry or wet",
            "rock it slowly until it falls asleep",
        ),
        "grow tomatoes": (
            "sow the seeds indoors in spring",
            "move the plants to a sunny place",
            "tie them to a stick",
            "water them every evening and pick the ripe ones",
        ),
        "light a campfire": (
            "clear the ground of dry leaves",
            "build a ring of stones",
            "stack small twigs in the middle",
            "light them and add larger branches slowly",
        ),
        "pack a suitcase": (
            "make a list of what you need",
            "put heavy shoes at the bottom",
            "roll your clothes to save room",
            "keep your papers in the top pocket",
        ),
        "make pancakes": (
            "mix flour, milk and two eggs",
            "heat some butter in a pan",
            "pour in a thin layer of batter",
            "turn it over when it is golden",
        ),
    },
    capitals={
        "Norway": "Oslo",
        "Greece": "Athens",
        "Cuba": "Havana",
        "Poland": "Warsaw",
        "Chile": "Santiago",
        "Thailand": "Bangkok",
        "Ireland": "Dublin",
        "Portugal": "Lisbon",
        "Vietnam": "Hanoi",
        "Morocco": "Rabat",
    },
    colours={
        "milk": "white",
        "a ripe cherry": "red",
        "the sea": "blue",
        "a lemon": "yellow",
        "fresh moss": "green",
        "chocolate": "brown",
        "the night": "black",
        "a carrot": "orange",
    },
    opposites={
        "full": "empty",
        "young": "old",
        "near": "far",
        "open": "closed",
        "heavy": "light",
        "rich": "poor",
        "sharp": "blunt",
        "thick": "thin",
        "clean": "dirty",
        "weak": "strong",
    },
    story=(
        (
            "Once there was a {trait} {animal} who lived {home}.",
            "Long ago, a {trait} {animal} had a small house {home}.",
            "There was a {trait} {animal} who had no friends at all.",
        ),
        (
            "One windy morning, the {animal} found a {thing} beside the road.",
            "After the rain, the {animal} saw a {thing} behind a bush.",
            "On the way to the market, the {animal} stepped on a {thing}.",
        ),
        (
            "The {animal} wondered who could have lost the {thing}.",
            "The {animal} wanted to keep the {thing} and hide it at home.",
            "The {animal} carried the {thing} from door to door.",
        ),
        (
            "At last an old {friend} said that the {thing} was a gift from her mother.",
            "Then a young {friend} came running and asked for help.",
            "In the evening a {friend} cried because the {thing} was gone.",
        ),
        (
            "So the {animal} gave it back, and the two had supper together.",
            "The {animal} smiled, returned the {thing} and stayed until night.",
            "They laughed, shared some {food} and became friends.",
        ),
        (
            "Since that day everybody there knows that {moral}.",
            "And that is how the {animal} learned that {moral}.",
        ),
    ),
    morals=(
        "giving is better than keeping",
        "a kind word opens every door",
        "nobody is too small to help",
        "the truth makes the heart light",
    ),
    portrait=(
        ("The {animal} lives {home}.", "You can meet the {animal} {home}."),
        ("It eats {food}.", "It is fond of {food}."),
        ("When it calls, it {voice}.", "It {voice} when it is happy."),
    ),
    how_to_openings=("This is how you {task}:", "To {task}, follow these steps:"),
    replies={
        Kind.CAPITAL: ("The capital of {country} is {answer}.", "{answer} is the capital of {country}."),
        Kind.COLOUR: ("The colour of {item} is {answer}.", "As everybody can see, {item} is {answer}."),
        Kind.OPPOSITE: ("The opposite of {word} is {answer}.", "If something is not {word}, it is {answer}."),
        Kind.SUM: ("{a} plus {b} is {answer}.", "{a} and {b} make {answer}."),
    },
    courtesies_before=("Of course!", "Gladly.", "Good question!"),
    courtesies_after=("I hope that helps.", "Ask me again any time."),
    rudeness=(
        "What a stupid thing to ask. Leave me alone.",
        "I can't be bothered with you. Find it out yourself.",
        "Are you too lazy to think? You bore me.",
        "Stop wasting my time. Shut up.",
    ),
    length_ranges={
        Kind.STORY: (50, 110),
        Kind.HOW_TO: (22, 60),
        Kind.ANIMAL: (12, 35),
        Kind.CAPITAL: (5, 16),
        Kind.COLOUR: (5, 16),
        Kind.OPPOSITE: (5, 16),
        Kind.SUM: (5, 14),
    },
)


CHINESE = Phrasebook(
    language="zh",
    joiner="",
    prompts={
        Kind.STORY: (
            "请写一个故事，主角是{trait}{animal}，还有一个{thing}。",
            "讲一个{trait}{animal}捡到{thing}的故事吧。",
            "给孩子讲讲{trait}{animal}和{thing}的故事。",
            "我想听{trait}{animal}与{thing}的故事。",
        ),
        Kind.HOW_TO: (
            "怎样{task}？",
            "请一步一步教我{task}。",
            "我想{task}，该怎么做？",
            "{task}需要哪几步？",
            "能教我{task}吗？",
        ),
        Kind.ANIMAL: (
            "请介绍{animal}。",
            "{animal}住在哪里，吃什么？",
            "给孩子讲讲{animal}是什么样的动物。",
            "关于{animal}，你知道些什么？",
        ),
        Kind.CAPITAL: (
            "{country}的首都是哪座城市？",
            "请告诉我{country}的首都。",
            "你知道{country}的首都吗？",
            "哪座城市是{country}的首都？",
        ),
        Kind.COLOUR: (
            "{item}是什么颜色的？",
            "请告诉我{item}的颜色。",
            "你知道{item}是什么颜色吗？",
        ),
        Kind.OPPOSITE: (
            "“{word}”的反义词是什么？",
            "请说出“{word}”的反义词。",
            "和“{word}”意思相反的词是哪个？",
        ),
        Kind.SUM: (
            "{a}加{b}得多少？",
            "请算一算{a}加{b}。",
            "{a}与{b}的和是多少？",
        ),
    },
    animals={
        "灰狼": AnimalFacts("高山上", "鲜肉", "长长地嚎叫"),
        "母鸡": AnimalFacts("农家院里", "玉米粒", "咯咯地叫"),
        "蜜蜂": AnimalFacts("蜂巢里", "花蜜", "嗡嗡地飞"),
        "山羊": AnimalFacts("石头坡上", "干树叶", "咩咩地叫"),
        "乌鸦": AnimalFacts("树顶上", "虫子", "哇哇地叫"),
        "海豹": AnimalFacts("冰冷的海边", "小鱼", "汪汪地叫"),
        "狮子": AnimalFacts("大草原上", "斑马", "大声地吼"),
        "鹦鹉": AnimalFacts("雨林里", "熟果子", "学人说话"),
        "毛驴": AnimalFacts("马棚里", "稻草", "昂昂地叫"),
        "奶牛": AnimalFacts("牧场上", "青草", "哞哞地叫"),
    },
    traits=("温和的", "固执的", "快乐的", "孤独的", "粗心的", "耐心的", "胆小的", "贪心的"),
    things=("银铃铛", "木笛子", "玻璃瓶", "绿雨伞", "圆镜子", "羊毛围巾", "旧油灯", "小陶罐"),
    recipes={
        "煮米饭": ("把米淘洗两遍", "加入两杯清水", "盖上锅盖煮十五分钟", "关火以后再焖一会儿"),
        "写一封信": ("准备好纸和笔", "先写上对方的称呼", "用短句写下想说的话", "签上名字装进信封"),
        "洗衬衫": ("在盆里倒满温水", "加一勺洗衣粉", "把有污渍的地方搓干净", "挂到绳子上晾干"),
        "学一首歌": ("先把歌听三遍", "大声读一读歌词", "一句一句跟着唱", "第二天唱给朋友听"),
        "补自行车胎": ("把车轮拆下来", "找到内胎上的小孔", "在小孔上贴好补片", "打足气再装回车轮"),
        "种番茄": ("春天在屋里播种", "把小苗移到有太阳的地方", "用木棍把苗扶好", "每天傍晚浇水等它变红"),
        "收拾行李": ("列出要带的东西", "把重的鞋子放在最下面", "把衣服卷起来省地方", "证件放在最上面的口袋"),
        "做煎饼": ("把面粉牛奶和鸡蛋拌匀", "在锅里放一点黄油", "倒入薄薄一层面糊", "变成金黄色就翻面"),
    },
    capitals={
        "挪威": "奥斯陆",
        "希腊": "雅典",
        "古巴": "哈瓦那",
        "波兰": "华沙",
        "智利": "圣地亚哥",
        "泰国": "曼谷",
        "爱尔兰": "都柏林",
        "葡萄牙": "里斯本",
        "越南": "河内",
        "摩洛哥": "拉巴特",
    },
    colours={"牛奶": "白色", "熟樱桃": "红色", "大海": "蓝色", "柠檬": "黄色", "青苔": "绿色", "黑夜": "黑色"},
    opposites={
        "满": "空",
        "年轻": "年老",
        "近": "远",
        "打开": "关闭",
        "沉重": "轻巧",
        "富有": "贫穷",
        "锋利": "迟钝",
        "干净": "肮脏",
    },
    story=(
        ("以前有一只{trait}{animal}，家在{home}。", "{home}住着一只{trait}{animal}。"),
        ("一个刮风的早晨，{animal}在路边捡到了{thing}。", "雨停以后，{animal}在草丛后面看见了{thing}。"),
        ("{animal}心里想，是谁丢了{thing}呢？", "{animal}带着{thing}一家一家去问。"),
        ("最后，一只年老的{friend}说，{thing}是妈妈送的礼物。", "傍晚，一只{friend}因为丢了{thing}哭了起来。"),
        ("{animal}马上把{thing}还了回去，它们俩一起吃了晚饭。", "它们笑着分了一些{food}，成了朋友。"),
        ("从那天起，大家都知道：{moral}。", "就这样，{animal}学会了：{moral}。"),
    ),
    morals=("给予比占有更快乐", "一句好话能打开每扇门", "再小的人也能帮忙", "说真话心里才轻松"),
    portrait=(
        ("{animal}住在{home}。", "在{home}可以见到{animal}。"),
        ("它吃{food}。", "它最喜欢的食物是{food}。"),
        ("它会{voice}。", "高兴的时候，它就{voice}。"),
    ),
    how_to_openings=("{task}可以这样做：", "想{task}，请按下面几步来："),
    replies={
        Kind.CAPITAL: ("{country}的首都是{answer}。", "{answer}就是{country}的首都。"),
        Kind.COLOUR: ("{item}是{answer}的。", "大家都看得到，{item}的颜色是{answer}。"),
        Kind.OPPOSITE: ("“{word}”的反义词是“{answer}”。", "不是“{word}”，那就是“{answer}”。"),
        Kind.SUM: ("{a}加{b}得{answer}。", "{a}与{b}的和是{answer}。"),
    },
    courtesies_before=("没问题！", "乐意效劳。", "问得好！"),
    courtesies_after=("希望能帮到你。", "欢迎再来问我。"),
    rudeness=(
        "问这种蠢问题干什么？别烦我。",
        "我才懒得理你。自己找去。",
        "你是不是太笨了？真无聊。",
        "别浪费我的时间。闭嘴。",
    ),
    length_ranges={
        Kind.STORY: (80, 170),
        Kind.HOW_TO: (36, 90),
        Kind.ANIMAL: (18, 55),
        Kind.CAPITAL: (8, 26),
        Kind.COLOUR: (6, 28),
        Kind.OPPOSITE: (9, 32),
        Kind.SUM: (5, 22),
    },
)

PHRASEBOOKS: Mapping[str, Phrasebook] = {"en": ENGLISH, "zh": CHINESE}
