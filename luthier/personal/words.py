"""Lists of words that finding and replacing go by."""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ENGLISH_NAMES = words(
    """
Aaron Adam Adrian Aidan Alan Albert Alex Alexander Alfred Alice Alison Allen Amanda Amber Amelia Amy Andrea Andrew
Angela Ann Anna Anne Annie Anthony Antonio Arthur Ashley Barbara Ben Benjamin Bernard Beth Betty Beverly Bill Billy
Bob Bobby Brad Bradley Brandon Brenda Brian Bruce Bryan Caleb Cameron Carl Carol Caroline Carolyn Catherine Cathy
Chad Charles Cheryl Chloe Chris Christian Christina Christine Christopher Cindy Claire Clara Colin Connor Courtney
Craig Crystal Cynthia Dale Dan Daniel Danielle Dave David Dawn Dean Deborah Debra Denise Dennis Derek Diana Diane
Dominic Don Donald Donna Doris Dorothy Douglas Dylan Earl Edward Eileen Elaine Eleanor Elizabeth Ellen Ellie Emily
Emma Eric Erica Erin Ernest Ethan Eugene Evan Evelyn Fiona Frances Francis Frank Fred Frederick Gareth Gary Geoffrey
George Gerald Gerard Gillian Glenn Gloria Gordon Graham Greg Gregory Hannah Harold Harriet Harry Heather Heidi Helen
Henry Holly Howard Hugh Ian Isaac Isabella Isabelle Jack Jackie Jacob Jacqueline Jake James Jamie Jane Janet Janice
Jasmine Jason Jean Jeff Jeffrey Jennifer Jenny Jeremy Jerry Jesse Jessica Jill Jim Jimmy Joan Joanna Joanne Joe Joel
John Johnny Jonathan Joseph Josh Joshua Joyce Juan Judith Judy Julia Julian Julie Justin Karen Kate Katherine
Kathleen Kathryn Kathy Katie Keith Kelly Ken Kenneth Kevin Kimberly Kirsty Kyle Larry Laura Lauren Lawrence Leah Lee
Leonard Leslie Lewis Liam Linda Lindsay Lisa Logan Louis Louise Lucas Lucy Luke Lynn Madison Malcolm Marcus Margaret
Maria Marie Marilyn Mark Martha Martin Mary Matt Matthew Maureen Megan Melanie Melissa Michael Michelle Mike
Mohammed Molly Monica Muhammad Nancy Naomi Natalie Nathan Nathaniel Neil Nicholas Nick Nicola Nicole Nigel Noah
Oliver Olivia Oscar Owen Pamela Patricia Patrick Paul Paula Pauline Peggy Peter Phil Philip Phillip Phyllis Rachel
Ralph Randy Raymond Rebecca Richard Rick Rita Rob Robert Robin Roger Ron Ronald Ross Roy Russell Ruth Ryan Sally Sam
Samantha Samuel Sandra Sara Sarah Scott Sean Sebastian Shannon Sharon Shaun Shirley Simon Sophia Sophie Stacey
Stanley Stephanie Stephen Steve Steven Stewart Stuart Sue Susan Suzanne Tammy Tara Ted Teresa Terry Theodore Theresa
Thomas Tiffany Tim Timothy Tina Todd Tom Tony Tracey Tracy Trevor Tyler Valerie Vanessa Veronica Vincent Walter
Wayne Wendy William Zachary Zoe
"""
)
"""Common given names of English speakers, without those that are mostly places or common words."""

SPANISH_NAMES = words(
    """
Adolfo Adriana Adrián Agustín Aitana Aitor Alba Alberto Alejandra Alejandro Alfonso Alfredo Alicia Almudena Amparo
Ana Andrés Anselmo Antonia Araceli Ariadna Arturo Asunción Aurora Beatriz Begoña Belén Benito Bernardo Blanca Borja
Bruno Camila Carla Carlos Carlota Carmen Catalina Cecilia Celia Clara Claudia Concepción Consuelo Cristian Cristina
Cristóbal César Daniela Diego Dolores Domingo Eduardo Elena Elisa Eloísa Elvira Emilia Emilio Encarnación Enrique
Ernesto Esperanza Esteban Esther Eugenia Eugenio Eva Fabián Federico Felipe Fernanda Fernando Francisca Francisco
Fátima Gabriel Gabriela Gerardo Germán Gloria Gonzalo Graciela Gregorio Guadalupe Guillermo Gustavo Hernán Hugo
Héctor Ignacio Inmaculada Inés Irene Isabel Ismael Iván Jacinto Jaime Javier Jesús Jimena Joaquín Jordi Jorge Josefa
Josefina Josep José Juana Juanjo Julieta Julio Lara Leonardo Leticia Lidia Lola Lorena Lorenzo Lourdes Lucía Luis
Luisa Luz Magdalena Manolo Manuel Manuela Marc Marcelo Marcos Margarita Mariana Mariano Marina Mario Marisol Marta
Martina Martín María Mateo Matías Mauricio Maximiliano Mercedes Miguel Montserrat Mónica Natalia Nerea Nicolás
Noelia Nuria Octavio Olga Pablo Paloma Patricio Pedro Pilar Rafael Ramiro Ramón Raquel Raúl Remedios Ricardo Roberto
Rocío Rodolfo Rodrigo Rogelio Rosa Rosario Rubén Salvador Sandra Santos Sergio Silvia Sofía Soledad Sonia Susana
Tamara Tomás Valentina Valeria Vicente Virgilio Víctor Xavier Ximena Yolanda Álvaro Ángel Ángela Ángeles
"""
)
"""The same of Spanish speakers."""

FIRST = words(
    """
Ada Alba Alma Amy Ana Ben Blanca Carl Carla Clara Cora Dan Daniel Diana Diego Edith Elena Elisa Emma Eric Eva Felix
Flora Frank Gema Gina Grace Hugo Ida Inés Irene Iris Ivan Jack Jaime Jane Joel Jorge Judith Julia Kate Laura Leo
Lidia Lily Lola Louis Lucas Luis Mara Marcos Marta Max Mia Miguel Mira Nadia Nina Noah Nora Olga Olive Oscar Pablo
Paula Peter Pilar Ralph Raquel Rita Rosa Ruth Samuel Sara Sergio Silvia Simon Sonia Stella Teresa Tessa Theo Thomas
Tomás Toni Vera Victor Viola Walter Wendy Zoe
"""
)
"""Given names of stand-ins."""

STEMS = words(
    """
Ash Bar Beck Black Brad Bridge Brom Cald Carl Chat Clay Cold Cran Dal Dun East Elm Fair Fal Glen Green Hal Hart Haw
Hazel High Holm Kings Lang Lin Mar Mill Mor New North Oak Pem Pres Red Rock Rush Salt Sand Shel Stan Stone Thorn Wal
West Whit Wick Win Wood
"""
)
"""Beginnings of surnames and places of stand-ins."""

ENDS = words(
    """
brook burn bury by combe cote croft dale den don field ford gate ham hurst land ley low mere more shaw stead stone
stow thorpe ton wade water well wick wood worth
"""
)
"""And their ends: some 1800 names together."""

COMMON_ENGLISH = words(
    """
the of and to in is that it for was on are with as be this have from or had by not but what all were when we there
can an your which their said if do will each about how up out them then she many some so these would my i you he at
please me has been they
"""
)
"""The commonest words, which tell the language of a text."""

COMMON_SPANISH = words(
    """
de la que el en y los del se las por un para con no una su al lo como más pero sus le ya o este sí porque esta entre
cuando muy sin sobre también me hasta hay donde quien desde todo nos durante todos uno les ni es soy mi tengo vivo
llamo tu está son fue ha señor señora
"""
)
"""The same in Spanish."""
