from matplotlib.figure import Figure
from matplotlib.text import Annotation

from hps_lightning.point_labels import Label, place_labels


def drawn(labels, obstacles=()):
    figure = Figure(figsize=(5, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.scatter([label.x for label in labels], [label.y for label in labels])
    place_labels(axes, labels, obstacles)
    renderer = figure.canvas.get_renderer()
    texts = [child for child in axes.get_children() if isinstance(child, Annotation) and child.get_text()]
    frame = axes.get_window_extent(renderer)
    points = [axes.transData.transform((label.x, label.y)) for label in labels]
    return frame, [text.get_window_extent(renderer) for text in texts], points


def test_crowded_names_lie_inside_and_neither_on_each_other_nor_on_points():
    labels = [Label(0.5 + 0.02 * (i % 4), 0.5 + 0.02 * (i // 4), f"network {i}", "black") for i in range(12)]
    labels += [Label(0, 0, "corner", "black"), Label(1, 1, "corner", "black")]
    frame, boxes, points = drawn(labels)
    assert len(boxes) == len(labels)
    for i, box in enumerate(boxes):
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        assert frame.y0 <= box.y0
        assert box.y1 <= frame.y1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert not any(box.contains(*point) for point in points)


def test_a_name_keeps_clear_of_obstacles():
    label = Label(0.5, 0.5, "name", "black")
    far = [Label(0, 0, "", "black"), Label(1, 1, "", "black")]
    (_, (free,), _) = drawn([label, *far])
    # A wall to where it stood.
    wall = [(0.5 + 0.01 * i, 0.5) for i in range(1, 15)]
    (_, (walled,), _) = drawn([label, *far], wall)
    assert free.x0 != walled.x0 or free.y0 != walled.y0


def test_alone_it_stands_beside_its_point_without_a_line():
    figure = Figure(figsize=(5, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.scatter([0, 0.5, 1], [0, 0.5, 1])
    place_labels(axes, [Label(0.5, 0.5, "a $name$", "black")])
    assert sum(isinstance(child, Annotation) for child in axes.get_children()) == 1
